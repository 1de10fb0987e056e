"""Jobs of avocado's that run guest-driven tests: which tests, in what surroundings, and within bounds."""
