"""Effects other than routes: sysctls, rules, files, the Node condition. Each knows to make and to check one kind of state."""
