/* json: ended by a NUL. */
int proposal_is_good(const char *json);
