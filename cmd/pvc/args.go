package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// level is one word of a command: the flags that it knows, those given, and
// the words that may follow.
type level struct {
	word  string
	flags []cli.Flag
	given []string
	next  []*cli.Command
	raw   bool   // reads its words itself: nothing is arranged
	takes string // the names that it takes, for people
}

// builtinFlags are added by the library itself, to every command.
var builtinFlags = []cli.Flag{cli.HelpFlag}

// arrange puts the flags of each command before its names, since the library
// stops reading flags at the first name: `node primary hv2 --wait` becomes
// `node primary --wait=true -- hv2`. A flag goes to the innermost command that
// knows it, so that --api may stand anywhere. What begins with a dash and is
// known to nobody is refused by name; after "--" everything is a name.
func arrange(app *cli.App, argv []string) ([]string, error) {
	levels := []*level{{word: argv[0], flags: app.Flags, next: app.Commands}}
	var names []string
	for i := 1; i < len(argv); i++ {
		word := argv[i]
		switch {
		case word == "--":
			names = append(names, argv[i+1:]...)
			return compose(levels, names), nil
		case strings.HasPrefix(word, "-") && word != "-":
			used, err := takeFlag(levels, argv[i:])
			if err != nil {
				return nil, err
			}
			i += used - 1
		default:
			next, err := descend(levels, word)
			if err != nil {
				return nil, err
			}
			if next == nil {
				names = append(names, word)
				continue
			}
			levels = append(levels, next)
			if next.raw {
				return append(compose(levels, nil), argv[i+1:]...), nil
			}
		}
	}
	return compose(levels, names), nil
}

func compose(levels []*level, names []string) []string {
	var out []string
	for _, l := range levels {
		out = append(append(out, l.word), l.given...)
	}
	if len(names) > 0 {
		out = append(append(out, "--"), names...)
	}
	return out
}

// descend returns the command that the word names, nil where words are names.
func descend(levels []*level, word string) (*level, error) {
	last := levels[len(levels)-1]
	if len(last.next) == 0 {
		return nil, nil
	}
	var known []string
	for _, c := range last.next {
		if c.HasName(word) {
			return &level{word: word, flags: c.Flags, next: c.Subcommands, raw: c.SkipFlagParsing, takes: c.ArgsUsage}, nil
		}
		if !c.Hidden {
			known = append(known, c.Name)
		}
	}
	if word == "help" || word == "h" {
		return &level{word: word}, nil
	}
	return nil, usagef("there is no command %q in `%s`%s; known: %s", word, title(levels), perhaps(word, known), strings.Join(known, ", "))
}

// takeFlag hands the flag at the head of rest to the level that knows it and
// returns how many words it took.
func takeFlag(levels []*level, rest []string) (int, error) {
	dashed, value, joined := strings.Cut(rest[0], "=")
	name := strings.TrimPrefix(strings.TrimPrefix(dashed, "-"), "-")
	l, flag := findFlag(levels, name)
	if flag == nil {
		known := knownFlags(levels)
		return 0, usagef("`%s` knows no flag %q%s; known: %s (after \"--\" everything is a name)", title(levels), dashed, perhaps(dashed, known), strings.Join(known, ", "))
	}
	if joined {
		l.given = append(l.given, "--"+name+"="+value)
		return 1, nil
	}
	if _, boolean := flag.(*cli.BoolFlag); boolean {
		l.given = append(l.given, "--"+name)
		return 1, nil
	}
	if len(rest) < 2 || strings.HasPrefix(rest[1], "-") && rest[1] != "-" {
		return 0, usagef("the flag %q needs a value; one that begins with a dash is written %s=VALUE", dashed, dashed)
	}
	l.given = append(l.given, "--"+name+"="+rest[1])
	return 2, nil
}

// findFlag looks from the innermost command outwards.
func findFlag(levels []*level, name string) (*level, cli.Flag) {
	for i := len(levels) - 1; i >= 0; i-- {
		for _, f := range slices.Concat(levels[i].flags, builtinFlags) {
			if slices.Contains(f.Names(), name) {
				return levels[i], f
			}
		}
	}
	return nil, nil
}

func knownFlags(levels []*level) []string {
	var known []string
	for i := len(levels) - 1; i >= 0; i-- {
		for _, f := range levels[i].flags {
			known = append(known, "--"+f.Names()[0])
		}
	}
	return known
}

// perhaps asks whether the nearest of the known words was meant, where one is
// near: two letters away at most, and less than half of it.
func perhaps(word string, known []string) string {
	best, nearest := 3, ""
	for _, k := range known {
		if d := distance(word, k); d < best && 2*d < len(k) {
			best, nearest = d, k
		}
	}
	if nearest == "" {
		return ""
	}
	return ": did you mean " + nearest + "?"
}

// distance is how many letters must be added, taken away, changed or swapped with
// the next to make one word of the other.
func distance(a, b string) int {
	before, last, now := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		now[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			now[j+1] = min(last[j]+cost, last[j+1]+1, now[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				now[j+1] = min(now[j+1], before[j-1]+1)
			}
		}
		before, last, now = last, now, before
	}
	return last[len(b)]
}

func title(levels []*level) string {
	words := []string{"pvc"}
	for _, l := range levels[1:] {
		words = append(words, l.word)
	}
	return strings.Join(words, " ")
}
