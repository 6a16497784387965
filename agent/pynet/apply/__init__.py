"""Effects: routes, sysctls, rules, files, the Node condition, Events. Each module makes and checks one kind of state."""
