"""What makes a device a program: who listens, what runs beside a session, conventions, devices by name."""
