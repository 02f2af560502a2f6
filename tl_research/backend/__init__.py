"""The only room that imports TensorFlow. Other rooms use these functions and classes, and Keras:

    start       start_backend, import_backend: threads, determinism
    devices     has_gpu, kernel_facts: what decides the last bits of a kernel
    inference   compile_forward, compile_network, export_graph: traced functions outside training
    train_step  TrainStep, OutOfMemoryError: one update of the variables that learn
    bn_folding  fold_batch_norm: frozen batch norm as part of the convolution below
    precision   choose_policy, compute_in: 16 bits in training
    strategy    open_strategy, sync_batch_norm, broadcast_from_chief: several devices and machines
    workers     the machines of a run; imports no TensorFlow

A second backend would have modules of the same names beside these. The room knows nothing of data, features, models or
stages: it takes Keras models and variables, and arrays.
"""
