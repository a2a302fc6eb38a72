# As aarch64.cmake, for systems with an older C library than that of Debian's compiler: glibc 2.28, which the
# onnxruntime of Python wheels needs anyway. The compiler is the one in the Python package ziglang (100 MB).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER python-zig c++ -target aarch64-linux-gnu.2.28)
# Without this, 14 MB of what is only for debuggers.
set(CMAKE_EXE_LINKER_FLAGS_INIT -s)
set(CMAKE_SHARED_LINKER_FLAGS_INIT -s)
