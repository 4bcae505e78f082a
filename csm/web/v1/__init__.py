"""The parts of `/v1`: what may be asked, what is answered, whose voices are kept. `csm.web.openai` has the routes."""
