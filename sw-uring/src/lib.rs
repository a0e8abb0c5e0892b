//! Kernel files and block devices by io_uring, and by a thread pool where io_uring is blocked.
