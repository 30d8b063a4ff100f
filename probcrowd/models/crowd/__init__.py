"""Ways to learn a classifier from crowds: how labels depend on the network's class probabilities f(x).

    mixture           p(label l | x, j) = sum_k f_k(x) confusion[j, k, l]               mixture, raykar, mbem
    log-linear        p(label l | x, j) = softmax_l( sum_k f_k(x) weight[j, k, l] )     crowd_layer, conal
    joint             p(j, l | x) = sum_k f_k(x) union[k, j, l]                         union_net
    information       maximise the mutual information of f and the labels' posterior    max_mig
    heads             a classifier per annotator, and a weighted average of them        doctor_net
    aggregated        no annotators: f is trained on labels aggregated beforehand       aggregated_labels

softmax_l(weight[j, k, l]) is the confusion of an item that is certainly of class k; for other items a
log-linear channel is the normalised geometric mean of these rows, a mixture their arithmetic mean. The
training loop is `probcrowd.inference.crowd.training`.
"""
