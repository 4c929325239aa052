"""How good synthesised speech is, without listeners."""
