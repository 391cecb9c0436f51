"""What an SAE is worth: each file answers one question about it, on any store."""
