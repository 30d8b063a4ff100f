"""SimLabel's predictors: one prediction per annotator from an item's embedding, sharing what annotators have in common.

queries        a learned query per annotator that attends to other annotators and to the item      after QuMATL
performance    a truth network, and a confusion matrix per annotator and item on top of it         after MaDL
residuals      common mean and standard deviation of logits, and an annotator's offsets to both    after PADL
pooled         a truth network, and confusion matrices shrunk to a common one by a prior           the hierarchical baseline
"""
