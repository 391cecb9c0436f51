"""What an SAE knows of labels that are facts: each file answers one question.

Shape key, throughout: n images, v factor values, s latents, d width. Codes are of images (`rows`).
What is chosen (latents, thresholds, probes) is chosen on the train images of a `Task` and told of
its test images; what is not defined is NaN, with the reason beside it.
"""
