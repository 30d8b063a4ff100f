"""What annotators make of the class probabilities f(x) of a network: one small file for each way to learn from crowds.

    mixture       p(label l | x, j) = sum_k f_k(x) confusion[j, k, l]                       mixture, raykar, mbem
    log-linear    p(label l | x, j) = softmax_l( sum_k f_k(x) weight[j, k, l] )             crowd_layer, conal
    joint         p(j, l | x) = sum_k f_k(x) union[k, j, l]                                 union_net
    information   f and what labels say of the class should tell much of each other         max_mig
    heads         a classifier for every annotator, and their average                       doctor_net
    targets       no annotators: f is trained on labels that something else made of theirs  targets

softmax_l(weight[j, k, l]) is the confusion of an item that is surely of class k; for others a log-linear channel is the normalised geometric
mean of these rows, a mixture the arithmetic one. The loop that trains them is `probcrowd.inference.crowd.training`.
"""
