"""What is compiled at installation: the module `_native`, the operator library, the runner. See `..native_library`."""
