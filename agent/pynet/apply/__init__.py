"""Effects other than routes: sysctls, rules, files, the Node condition. Each knows how to make and to check one kind of state."""
