"""A language model as judge: what it is asked, how its answer is read, and how none is asked for twice."""
