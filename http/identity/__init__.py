"""Tokens that somebody else vouches for: what auth.py needs for the modes exchange, userinfo and jwks.

bearer      a token → a Principal, by the mode                    principal   who calls, and who is let in
tokens      what a header and a signed token hold                 refusals    why somebody is not
jwks        the issuer's keys                                     recall      what is remembered of tokens
client      the identity service as we ask it                     clock       what time it is
options     whether the options make sense together
"""
