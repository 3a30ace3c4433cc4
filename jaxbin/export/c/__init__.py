"""A network as one file of C: the pass over its program, and what writes the operations down."""
