"""The networks of the paper, one definition each."""
