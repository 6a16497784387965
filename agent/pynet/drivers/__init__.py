"""The edge: sockets, files and processes. Errors get the words of the kernel or the API here."""
