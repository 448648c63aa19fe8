"""What the process needs around the application: connections, descriptors, certificates, signals."""
