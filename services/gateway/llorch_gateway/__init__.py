"""The gateway: HTTP and bus clients in, admissions out, token streams back. Holds no state that another one lacks."""
