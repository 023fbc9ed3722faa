package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"pvc.internal/cluster"
)

// completionFlag is what the shells' scripts append to the words before the
// cursor, the last of which is the one to be completed.
const completionFlag = "--generate-completion"

// completionPatience is how long a key press waits for the names of nodes; tests
// on a busy machine wait longer.
var completionPatience = 700 * time.Millisecond

const bashCompletion = `# bash completion for pvc; load it by: source <(pvc completion bash)
_pvc() {
	local cur="${COMP_WORDS[COMP_CWORD]}" IFS=$'\n'
	COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" "${COMP_WORDS[@]:1:COMP_CWORD}" --generate-completion 2>/dev/null)" -- "$cur"))
}
complete -o default -F _pvc pvc
`

const zshCompletion = `#compdef pvc
# zsh completion for pvc; load it by: source <(pvc completion zsh)
_pvc() {
	local -a found
	found=("${(@f)$("${words[1]}" "${(@)words[2,CURRENT]}" --generate-completion 2>/dev/null)}")
	if [[ -n "${found[1]}" ]]; then compadd -- "${found[@]}"; else _files; fi
}
if [[ "${funcstack[1]}" = _pvc ]]; then _pvc "$@"; else compdef _pvc pvc; fi
`

func (t *terminal) completionCommand() *cli.Command {
	return &cli.Command{Name: "completion", Usage: "print the script by which a shell completes pvc's words", ArgsUsage: "bash|zsh",
		Description: "Load it by `source <(pvc completion bash)` in ~/.bashrc, or with zsh in ~/.zshrc.",
		Action: func(c *cli.Context) error {
			given, err := names(c, "bash or zsh")
			if err != nil {
				return err
			}
			script, known := map[string]string{"bash": bashCompletion, "zsh": zshCompletion}[given[0]]
			if !known {
				return usagef("there is no completion for %q: bash and zsh are known", given[0])
			}
			_, err = io.WriteString(t.out, script)
			return err
		}}
}

// completions are the words that may stand where the last of these stands, none
// where it does not know: the shell then offers files.
func completions(ctx context.Context, app *cli.App, words []string) []string {
	if len(words) == 0 {
		words = []string{""}
	}
	before, cur := words[:len(words)-1], words[len(words)-1]
	levels := []*level{{word: app.Name, flags: app.Flags, next: app.Commands}}
	named := 0
	for i := 0; i < len(before); i++ {
		if word := before[i]; strings.HasPrefix(word, "-") && word != "-" {
			used, err := takeFlag(levels, before[i:])
			if err != nil { // it waits for the value that is being written, or nobody knows it
				return beginning(cur, flagValues(ctx, levels, word))
			}
			i += used - 1
			continue
		}
		next, err := descend(levels, before[i])
		switch {
		case err != nil || next != nil && next.raw:
			return nil
		case next == nil:
			named++
		default:
			levels = append(levels, next)
		}
	}
	last := levels[len(levels)-1]
	switch {
	case strings.HasPrefix(cur, "-"):
		return beginning(cur, knownFlags(levels))
	case len(last.next) > 0:
		var known []string
		for _, c := range last.next {
			if !c.Hidden {
				known = append(known, c.Name)
			}
		}
		return beginning(cur, known)
	case named > 0:
		return nil
	}
	return beginning(cur, nameValues(ctx, levels, last))
}

func beginning(prefix string, words []string) []string {
	return slices.DeleteFunc(words, func(w string) bool { return !strings.HasPrefix(w, prefix) })
}

// flagValues are the values that a flag takes, where they are a few words.
func flagValues(ctx context.Context, levels []*level, dashed string) []string {
	switch strings.TrimLeft(dashed, "-") {
	case "o", "output":
		return []string{formatTable, formatJSON, formatYAML}
	case "node":
		return presentNodes(ctx, levels)
	case "connection":
		return connectionNames()
	case "driver":
		return []string{"exec", "ocf:", "redis", "systemd:"}
	case "kind":
		if strings.HasPrefix(title(levels), "pvc workload") {
			return []string{string(cluster.WorkloadMovable), string(cluster.WorkloadReplicated)}
		}
	case "selector":
		return append(slices.Clone(cluster.Selectors), "default")
	}
	return nil
}

// nameValues are the names that a command takes.
func nameValues(ctx context.Context, levels []*level, last *level) []string {
	switch at := title(levels); {
	case strings.HasPrefix(at, "pvc pki "):
		return nil // nodes that need not be there yet
	case strings.HasPrefix(last.takes, "NODE"):
		found := presentNodes(ctx, levels)
		if strings.HasSuffix(last.takes, "|primary") {
			found = append(append(found, present(ctx, levels, "workload")...), "primary")
		}
		return found
	case last.takes == "WORKLOAD" && at != "pvc workload add":
		return present(ctx, levels, "workload")
	case last.takes == "bash|zsh":
		return []string{"bash", "zsh"}
	case strings.HasPrefix(at, "pvc connection "):
		return connectionNames()
	}
	return nil
}

func connectionNames() []string {
	all, _, err := readConnections()
	if err != nil {
		return nil
	}
	return all.names()
}

// presentNodes are the nodes' names.
func presentNodes(ctx context.Context, levels []*level) []string {
	return present(ctx, levels, "node")
}

// present asks the server that the words name for what there is of a kind, not for
// long.
func present(ctx context.Context, levels []*level, kind string) []string {
	var out bytes.Buffer
	argv := append(append([]string{"pvc"}, levels[0].given...), "--timeout="+completionPatience.String(), "--output=json", kind, "list")
	if newApp(strings.NewReader(""), &out, io.Discard).RunContext(ctx, argv) != nil {
		return nil
	}
	var found []struct{ Name string }
	if json.Unmarshal(out.Bytes(), &found) != nil {
		return nil
	}
	names := make([]string, len(found))
	for i, n := range found {
		names[i] = n.Name
	}
	return names
}
