"""Turns a pretrained small language model and a file of conversations into a chat model.

Tensor names end in one letter per dimension: `x_TD` has a row of hidden size for each token. A letter means the same
in every file. A module that needs another one names it in its own docstring, under "Local letters", and does not give
a letter of this table a second meaning.

    T  tokens of a flat batch: all documents end to end, without padding
    N  selected tokens, for instance those the head reads
    S  documents of a batch, or sequences being decoded
    L  positions of one sequence
    B  sequences of one padded product
    D  hidden size
    H  query heads
    G  key/value heads
    Q  query heads per key/value head, H / G
    K  head dim, the width of one head
    R  rotary pairs of one head, K / 2
    F  width of a feed-forward network
    E  experts
    C  experts chosen per token
    V  vocabulary
    I  inputs of a matrix
    O  outputs of a matrix
    1  a dimension of size one, kept for broadcasting
"""

__version__ = "0.1.0"
