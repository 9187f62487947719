/* jinja_ast: a template as a tree, and the parser that makes it.
 * Flow:    template source -> jinja_lex -> [jinja_ast] -> jinja_eval
 * Thread:  the tree is not changed after parsing; any number of threads may render it.
 * Memory:  nodes lie in the context that parsed them.
 * Source:  Jinja 3.1's grammar, as transformers sets it up: trim_blocks, lstrip_blocks,
 *          loopcontrols, and the {% generation %} tag. */
#ifndef BATON_MODEL_CHAT_TEMPLATE_JINJA_AST_H
#define BATON_MODEL_CHAT_TEMPLATE_JINJA_AST_H

#include "model/chat_template/jinja_value.h"

enum node_kind {
    /* expressions */
    N_CONST,   /* value */
    N_NAME,    /* value: the name */
    N_TUPLE,   /* list; also an assignment's targets */
    N_LIST,    /* list */
    N_DICT,    /* list: key, value, key, value */
    N_COND,    /* a if b else c; c may be NULL */
    N_OR,      /* a, b */
    N_AND,     /* a, b */
    N_NOT,     /* a */
    N_COMPARE, /* a, then list: right sides whose `op` says how */
    N_OPERAND, /* a; op */
    N_BINARY,  /* a, b; op */
    N_CONCAT,  /* list */
    N_NEG,     /* a */
    N_POS,     /* a */
    N_GETATTR, /* a; value: the name */
    N_GETITEM, /* a, b */
    N_SLICE,   /* a, b, c; each may be NULL */
    N_CALL,    /* a; args */
    N_FILTER,  /* a (NULL in a block: the block's text); value: name; args; number: its index */
    N_TEST,    /* a; value: name; args; number: its index */
    N_NSREF,   /* value: name, b: N_CONST attribute; only as an assignment's target */
    /* statements */
    N_BLOCK,       /* list of statements */
    N_DATA,        /* value: text as it stands */
    N_OUTPUT,      /* a */
    N_FOR,         /* a: target, b: iterable, c: condition or NULL, body, orelse or NULL; op: 1 if recursive */
    N_IF,          /* a: condition, body, orelse: N_IF, N_BLOCK or NULL */
    N_SET,         /* a: target, b: expression */
    N_SET_BLOCK,   /* a: target, b: filter chain or NULL, body */
    N_MACRO,       /* value: name, list: parameter names, args->values: the last ones' defaults, body */
    N_CALL_BLOCK,  /* a: the call, list and args: parameters as in N_MACRO, body */
    N_FILTER_BLOCK, /* b: filter chain, body */
    N_WITH,        /* list: target, value, target, value; body */
    N_SCOPE,       /* body: {% generation %} */
    N_BREAK,
    N_CONTINUE,
};

enum node_op {
    OP_ADD, OP_SUB, OP_MUL, OP_DIV, OP_FLOORDIV, OP_MOD, OP_POW,
    OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE, OP_IN, OP_NOT_IN,
};

struct arguments {
    struct node **values; /* [count]; positional first, then those with a name */
    struct value *names;  /* [count]; V_NONE for positional */
    uint32_t count;
    struct node *star, *star_star; /* *x and **x, or NULL */
};

struct node {
    uint8_t kind; /* enum node_kind */
    uint8_t op;   /* enum node_op */
    uint32_t line;
    uint32_t number;
    uint32_t count;     /* of list */
    struct value value;
    struct node *a, *b, *c;
    struct node **list;
    struct node *body, *orelse;
    struct arguments *args;
};

/* The whole template as one N_BLOCK, or NULL with the error in ctx.
 * source  valid UTF-8; borrowed for as long as the tree lives
 * Errors  INVALID_ARGUMENT: not a template; UNIMPLEMENTED: a tag, filter or test that this
 *         interpreter does not know, named with its line. */
struct node *jinja_parse(struct jinja_ctx *ctx, const char *source, size_t len);

#endif
