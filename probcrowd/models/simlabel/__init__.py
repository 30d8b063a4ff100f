"""One predictor per annotator over the embedding of an item: what is shared among annotators, and what is an annotator's own.

queries        a learned query per annotator, attention among annotators and to the item         after QuMATL
performance    a truth network, and an annotator-and-item confusion matrix on top of it            after MaDL
residuals      a common mean and spread of logits, and what an annotator adds to both             after PADL
pooled         a truth network, and confusion matrices drawn to a common one by a prior           the hierarchical rival
"""
