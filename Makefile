# Everything people and CI do, one line each. No make? Each line works as it stands, from this folder.
.PHONY: demo test conformance check fmt image doctor clean

demo:   ; @scripts/demo
test:   ; @scripts/test
conformance: ; @scripts/conformance
check:  ; @scripts/check
fmt:    ; @scripts/bootstrap --dev && .venv/bin/ruff format && .venv/bin/ruff check --fix-only
image:  ; @scripts/bootstrap && .venv/bin/python scripts/engine.py ensure && .venv/bin/sagebroker image build
doctor: ; @scripts/bootstrap && .venv/bin/sagebroker doctor
clean:  ; @rm -rf .venv .node demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
