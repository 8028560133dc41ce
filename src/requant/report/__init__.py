"""`report` and `board`: what is known of one build, or of many, as pages that a person looks at.

`evidence` gathers what there is, `judgement` says what it amounts to, `measures` and `pictures` make it visible, and
`page` writes it. `board` makes a site of many. Nothing here decides anything that another verb has not decided.
"""
