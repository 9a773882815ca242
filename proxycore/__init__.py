"""access and OBJECTS to HTTPS: the filtering proxy that tenants talk to."""
