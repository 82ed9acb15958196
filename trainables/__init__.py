"""What one trial does: scoring candidates without training, or distilling one of them."""
