"""What every part needs and no library gives: launch, run folders, atomic files, errors, logs.

Imports none of the other packages of this project.
"""
