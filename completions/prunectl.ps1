# Completes prunectl in PowerShell. Made by `make completions`.
# In $PROFILE: prunectl --show-completion powershell | Out-String | Invoke-Expression

Register-ArgumentCompleter -Native -CommandName prunectl -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $text = [System.Management.Automation.Language.StringConstantExpressionAst]
    $words = @($commandAst.CommandElements |
        Where-Object { $_.Extent.EndOffset -lt $cursorPosition } |
        ForEach-Object { if ($_ -is $text) { $_.Value } else { $_.Extent.Text } })
    $program, $before = $words
    if (-not $program) { return }
    $before = @($before | Where-Object { $_ })
    $current = $wordToComplete -replace '^[''"]', ''
    $env:_PRUNECTL_COMPLETE = 'powershell'
    try {
        # The dot keeps an empty word from being dropped on its way to the program.
        & $program @before ".$current" 2>$null | ForEach-Object {
            $value, $help = $_ -split "`t", 2
            $inserted = if ($value -match '[^\w:=./\\~+@-]') {
                "'" + ($value -replace "'", "''") + "'"
            } else { $value }
            if (-not $help) { $help = $value }
            [System.Management.Automation.CompletionResult]::new(
                $inserted, $value, 'ParameterValue', $help)
        }
    } finally {
        Remove-Item Env:_PRUNECTL_COMPLETE
    }
}
