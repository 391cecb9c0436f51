"""What removes concepts without an SAE, under the same interface."""
