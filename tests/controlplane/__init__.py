"""A real control plane on loopback, for tests: etcd, kube-apiserver, kube-controller-manager and Capsule's controller.

``pins`` says what runs, ``gobuild`` makes it with the Go toolchain, ``binaries`` decides where each comes from,
``processes`` starts and stops it. ``flux`` runs Flux's controllers beside it. ``python -m controlplane`` is the command
line of the same.
"""
