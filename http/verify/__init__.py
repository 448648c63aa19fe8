"""`gnomon verify URL`: any server of `POST /v1/completions`, judged by the law (reference/LAW.md), from outside.

verdict     what a case is, and what can come of it
exchange    requests and answers, a budget of tokens, curl lines
probe       what cases ask with, and what they know of the model
cases/      one file a part of the law, one function a sentence
run         every case, in an order that lets none blame another for its own fault
"""
