"""An emulated CPU: QEMU runs the target's own runtimes, a plugin counts instructions and models its caches."""
