"""Serve explained models: a REST and gRPC server, Triton model repositories, KServe manifests."""
