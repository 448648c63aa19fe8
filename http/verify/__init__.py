"""`gnomon verify URL`: any server of `POST /v1/completions`, judged by the law (reference/LAW.md), from outside.

verdict     what a case is, and what can come of it
ask/        requests within a budget, answers, and what cases know of the model
cases/      one file a part of the law, one function a sentence
run         every case, in an order that lets none blame another for its own fault
roots       which findings follow from which
weights/    a server's answers computed again on its own checkpoint; golden: the golden vectors
report/     the findings for a terminal, as JSON, JUnit and HTML, and against an earlier report
"""
