"""`gnomon verify URL`: any server of `POST /v1/completions`, judged by the law (reference/LAW.md), from outside.

verdict     what a case is and what can come of it          cases/      one file a part of the law, one function a sentence
exchange    requests and answers, a budget, curl lines      probe       what cases ask with, and what they know of the model
run         every case in an order that lets none blame another for its own fault
"""
