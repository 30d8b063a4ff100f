"""Learning from several imperfect annotators.

Letters, the same in mathematics, shapes, tests and results:

    b task in a batch   i item   j annotator   k true class   l given label   n annotation (a row)   d embedding dimension
    confusion[j, k, l] = P(annotator j says l | truth is k); rows (over l) sum to 1.
"""

__version__ = "0.1.0"
