"""What turns raw material into numbers and back: tokenizers, images."""
