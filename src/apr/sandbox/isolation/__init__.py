"""What the kernel offers to keep a program in: namespaces, Landlock, seccomp, a private view."""
