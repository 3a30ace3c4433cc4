"""A trained network as a small file, and the programs that use one."""
