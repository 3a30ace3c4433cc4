"""What computes: a step, an epoch, how they share devices and processes."""
