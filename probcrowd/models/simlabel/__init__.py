"""SimLabel's predictors: a prediction per annotator from an item's embedding.

queries        a learned query per annotator that attends to annotators and item      after QuMATL
performance    a truth network, and a confusion matrix per annotator and item on top           after MaDL
residuals      common mean and standard deviation of logits, and annotators' offsets     after PADL
pooled         a truth network, and confusion matrices shrunk to a common one        hierarchical baseline
"""
