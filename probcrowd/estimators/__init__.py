"""Label aggregation for people who do not care how: fit, predict, predict_proba, score; answers under the
user's own ids.
"""
