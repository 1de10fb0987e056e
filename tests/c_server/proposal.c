/*
 * Whether a client's proposal, the JSON of VERSION, is one: well-formed, and of the types that the specification gives
 * to the capabilities that it has. Unknown members are passed over, as it asks.
 */
#include <ctype.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proposal.h"

/* A member of an object: what its value begins with ('0': a number), the most that it may be, what is inside of it. */
struct member {
    const char *name;
    char kind;
    double most;
    const struct member *inside;
};

static const struct member of_migration[] = { { "pgsize", '0', 1e18, NULL }, { 0 } };
static const struct member of_capabilities[] = {
    { "max_msg_fds", '0', 1024, NULL }, { "max_data_xfer_size", '0', 1e18, NULL }, { "migration", '{', 0, of_migration }, { 0 },
};
static const struct member of_proposal[] = { { "capabilities", '{', 0, of_capabilities }, { 0 } };
static const struct member whole = { "", '{', 0, of_proposal }, anything = { 0 };

static const char *value(const char *at, const struct member *rule);

static const char *blanks(const char *at)
{
    return at + strspn(at, " \t\r\n");
}

/* What follows these return, or NULL where it is none. */
static const char *string(const char *at)
{
    if (*at != '"')
        return NULL;
    for (at++; *at != '"'; at++)
        if ((uint8_t)*at < ' ' || (*at == '\\' && !*++at))
            return NULL;
    return at + 1;
}

static const char *number(const char *at, const struct member *rule)
{
    char *end;
    double found = strtod(at, &end);

    return rule->kind && (found < 0 || found > rule->most) ? NULL : end;
}

static const char *word(const char *at)
{
    static const char *const words[] = { "true", "false", "null" };

    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strncmp(at, words[i], strlen(words[i])))
            return at + strlen(words[i]);
    return NULL;
}

static const struct member *named(const struct member *each, const char *name, size_t length)
{
    for (; each && each->name; each++)
        if (strlen(each->name) == length && !memcmp(each->name, name, length))
            return each;
    return &anything;
}

static const char *member(const char *at, const struct member *rule)
{
    const char *behind = string(at), *colon = behind ? blanks(behind) : "";

    return *colon == ':' ? value(colon + 1, named(rule->inside, at + 1, (size_t)(behind - at) - 2)) : NULL;
}

static const char *value(const char *at, const struct member *rule)
{
    char kind = *(at = blanks(at));

    if (isdigit((uint8_t)kind) || kind == '-')
        kind = '0';
    if (rule->kind && rule->kind != kind)
        return NULL;
    if (kind == '0')
        return number(at, rule);
    if (kind == '"')
        return string(at);
    if (kind != '{' && kind != '[')
        return word(at);
    char end = kind == '{' ? '}' : ']';
    if (*(at = blanks(at + 1)) == end)
        return at + 1;
    for (;; at = blanks(at + 1)) {
        at = kind == '{' ? member(at, rule) : value(at, &anything);
        if (!at || *(at = blanks(at)) == end)
            return at ? at + 1 : NULL;
        if (*at != ',')
            return NULL;
    }
}

int proposal_is_good(const char *json)
{
    const char *end = value(json, &whole);

    return end && !*blanks(end);
}
