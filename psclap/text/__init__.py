"""What is said of a written text: words, then phonemes."""
