"""The local web page: it presents what the applications return, and computes nothing itself."""
