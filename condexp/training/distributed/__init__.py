"""Data-parallel training in torch's vocabulary: environment, communicator, process group."""
