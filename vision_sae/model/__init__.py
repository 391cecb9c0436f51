"""The seam to the world of models: adapters, sites, and what reads or edits them."""
